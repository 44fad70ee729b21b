import tomllib
from pathlib import Path

import pytest

from holdfast.config import FIELDS, Config, changed_unreloadable, from_command_line, load, render
from holdfast.model.errors import InvalidArgument


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_defaults_then_file_then_flags(tmp_path: Path) -> None:
    path = written(tmp_path, 'root = "/a"\nstate = "/b"\nlog_level = "debug"\n')
    config = load(path, {"root": "/c", "log_level": None})
    assert (config.root, config.state, config.socket) == (Path("/c"), Path("/b"), Path("/b/holdfast.sock"))
    assert (config.log_level, config.log_format) == ("debug", "text")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('rooot = "/a"', "rooot: there is no such setting; did you mean root?"),
        ('root = "relative"', "root: 'relative' is not an absolute path"),
        ('log_level = "loud"', "log_level: 'loud' is not one of"),
        ('exec_output_limit = "many"', "exec_output_limit: 'many' is not a size"),
        ("exec_output_limit = -1", "exec_output_limit"),
        ('cgroup_root = "/a/../b"', "cgroup_root"),
        ('insecure_registries = "host"', "insecure_registries"),
        ("[runtimes.crun]\nbinaries = 1", "runtimes.crun.binaries: there is no such setting"),
        ("[runtimes.crun]", "runtimes.crun.binary"),
        ("[runtimes.'../x']\nbinary = '/bin/x'", "runtimes.../x: '../x' is not a handler name"),
        (
            "[runtimes.crun]\nbinary = 'crun'\nplatform = 'kvm'",
            "runtimes.crun.platform: it is for a binary called",
        ),
        ("[runtimes.g]\nbinary = '/b/runsc'\nplatform = 'xen'", "runtimes.g.platform: 'xen' is not one of systrap,"),
        ('criu_path = "criu"', "criu_path: 'criu' is not an absolute path"),
        ('exec_output_limit = "8 MiB!"', "exec_output_limit: '8 MiB!' is not a size"),
        ('unset_seccomp_profile = "none"', "unset_seccomp_profile: 'none' is not runtime/default, unconfined, or"),
        ('unset_seccomp_profile = "localhost/"', "unset_seccomp_profile"),
        ('seccomp_root = "profiles"', "seccomp_root: 'profiles' is not an absolute path"),
        ('known_escapes = "ignore"', "known_escapes: 'ignore' is not one of warn, refuse"),
        ('fixed_escapes = ["2024-21626"]', "fixed_escapes: ['2024-21626'] is not a list such as"),
        ('streaming_address = "127.0.0.1"', "streaming_address: '127.0.0.1' is not an address such as"),
        ('streaming_address = "127.0.0.1:70000"', "streaming_address"),
        ('streaming_address = "::1:80"', "streaming_address"),
        ('streaming_address = "[127.0.0.1]:80"', "streaming_address"),
        ('streaming_address = "300.0.0.1:80"', "streaming_address"),
        ('streaming_address = ":80"', "streaming_address"),
        ('streaming_address = "a b:80"', "streaming_address"),
        ("streaming_idle_timeout = -1", "streaming_idle_timeout: -1 is not a number of seconds"),
        ('streaming_tls_cert = "/cert.pem"', "streaming_tls_cert, streaming_tls_key"),
        ('streaming_tls_key = "key.pem"', "streaming_tls_key: 'key.pem' is not an absolute path"),
        ("= 3", "cannot read configuration"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as failure:
        load(written(tmp_path, text))
    assert problem in str(failure.value)


SIZES = [("8MiB", 8 << 20), ("64K", 64 << 10), ("1GB", 1 << 30), ("64m", 64 << 20), ("12", 12)]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes(tmp_path: Path, text: str, size: int) -> None:
    assert load(written(tmp_path, f'exec_output_limit = "{text}"')).exec_output_limit == size


@pytest.mark.parametrize(
    "text", ["127.0.0.1:0", "[::1]:10010", "0.0.0.0:1", "node-1.example:65535", "[fe80::1%eth0]:9"]
)
def test_streaming_addresses(tmp_path: Path, text: str) -> None:
    assert load(written(tmp_path, f'streaming_address = "{text}"')).streaming_address == text


def test_profiles_and_escapes(tmp_path: Path) -> None:
    text = 'unset_seccomp_profile = "localhost/a/b.json"\napparmor_profile = "mine"\nfixed_escapes = ["CVE-2024-21626"]'
    config = load(written(tmp_path, text))
    assert (config.unset_seccomp_profile, config.apparmor_profile) == ("localhost/a/b.json", "mine")
    assert config.fixed_escapes == ("CVE-2024-21626",)
    assert load(written(tmp_path, render(config))) == config


def test_what_is_shown_gives_the_same_configuration(tmp_path: Path) -> None:
    config = load(
        written(
            tmp_path,
            'state = "/s"\ninsecure_registries = ["a:5000"]\ndefault_runtime = "x"\n[runtimes.x]\nbinary = "/bin/x"\n',
        )
    )
    assert load(written(tmp_path, render(config))) == config
    assert config.runtimes == {"x": {"binary": "/bin/x"}}


def test_the_example_is_the_table() -> None:
    example = Path(__file__).parents[2] / "dist" / "config.toml"
    assert set(tomllib.loads(example.read_text())) == set(FIELDS) - {"runtimes"}
    assert load(example) == Config()
    assert example.read_text().endswith(render(Config()))


def test_flags(tmp_path: Path) -> None:
    path = written(tmp_path, 'log_level = "error"\n')
    read = from_command_line(["--root", "/r", "--config", str(path)])
    assert (read().root, read().log_level) == (Path("/r"), "error")
    path.write_text('log_level = "info"\n')
    assert read().log_level == "info"


def test_what_a_reload_cannot_change() -> None:
    old, new = Config(), load(None, {"root": "/other", "log_level": "debug"})
    assert changed_unreloadable(old, new) == ["root"]
