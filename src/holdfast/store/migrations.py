"""The schema, as numbered steps; PRAGMA user_version says how many have been taken. A step, once released, is fixed."""

from typing import Final

from holdfast.store import images

_PODS: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE pods (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  namespace TEXT NOT NULL,
  uid TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  handler TEXT NOT NULL,
  config BLOB NOT NULL,
  cgroup_parent TEXT NOT NULL,
  owns_cgroup INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  ready INTEGER NOT NULL,
  stopped_at INTEGER NOT NULL,
  netns TEXT NOT NULL,
  network TEXT NOT NULL,
  shim_pid INTEGER,
  shim_start_time INTEGER,
  shim_boot_id TEXT,
  reason TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX pod_names ON pods (name, namespace, uid, attempt);

CREATE TABLE containers (
  id TEXT PRIMARY KEY,
  pod_id TEXT NOT NULL REFERENCES pods (id),
  name TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  config BLOB NOT NULL,
  image_ref TEXT NOT NULL,
  image_id TEXT NOT NULL,
  snapshot_key TEXT NOT NULL,
  log_path TEXT NOT NULL,
  stop_signal TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  started_at INTEGER NOT NULL,
  finished_at INTEGER NOT NULL,
  exit_code INTEGER NOT NULL,
  reason TEXT NOT NULL,
  message TEXT NOT NULL,
  pid INTEGER,
  start_time INTEGER,
  boot_id TEXT,
  oom_kills INTEGER NOT NULL,
  unknown INTEGER NOT NULL,
  resources BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX container_names ON containers (pod_id, name, attempt);

CREATE TABLE intents (
  object_id TEXT NOT NULL,
  op TEXT NOT NULL,
  since INTEGER NOT NULL,
  data TEXT NOT NULL,
  PRIMARY KEY (object_id, op)
) STRICT;

CREATE TABLE reports (id INTEGER PRIMARY KEY, json TEXT NOT NULL) STRICT;
CREATE TABLE quarantine (id INTEGER PRIMARY KEY, origin TEXT NOT NULL, key TEXT NOT NULL, row TEXT NOT NULL,
                         reason TEXT NOT NULL) STRICT;
"""

_USER: Final = "ALTER TABLE containers ADD COLUMN user BLOB NOT NULL DEFAULT x''"
_POD_RESOURCES: Final = "ALTER TABLE pods ADD COLUMN resources BLOB NOT NULL DEFAULT x''"
_CHECKPOINT: Final = "ALTER TABLE containers ADD COLUMN checkpoint TEXT NOT NULL DEFAULT ''"

MIGRATIONS: Final = (_PODS + images.SCHEMA, _USER, _POD_RESOURCES, _CHECKPOINT)
