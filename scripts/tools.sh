#!/bin/sh
# Unpack what Debian 12 lacks into .tools, installing nothing: .tools/bin/{runsc,criu,checkpointctl}.
#
# runsc is that of bookworm-backports; bookworm's own cannot restore. criu is one of 4.2 or later, since older ones
# fail on each socket from Linux 6.16 on; it comes with all libraries it needs and runs by their loader, and so does
# checkpointctl of the same suite, by which tests read our archives. They are got by an apt with lists, cache and
# sources of its own, from the mirror that this machine uses anyway, and checked against Debian's keyring. What
# cannot be got is said, and missing: the tests that need it are skipped.
set -eu
cd "$(dirname "$0")/.."

made=.tools/made
wanted=$(sha256sum <scripts/tools.sh | cut -d' ' -f1)
if [ "$(cat $made 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
private=$PWD/.tools/apt
complete=yes

missing() {
  echo "setup: cannot get $1; what needs it is not tested" >&2
  complete=no
}

mirror() { # where this machine's Debian comes from
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  found=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v codename="$codename" '$1 == codename && $2 == "main" { print $3; exit }')
  echo "${found:-http://deb.debian.org/debian}"
}

private_apt() { # $1: the only suite it knows. Settings of the machine, as for a proxy, are in force; its hooks are not.
  rm -rf "$private"
  mkdir -p "$private/lists/partial" "$private/cache/archives/partial"
  : >"$private/status"
  (umask 077 && echo "deb [signed-by=$keyring] $(mirror) $1 main" >"$private/sources.list")
  cat >"$private/apt.conf" <<EOF
Dir::Etc { sourcelist "$private/sources.list"; sourceparts "/dev/null"; preferences "/dev/null"; preferencesparts "/dev/null"; };
Dir::State "$private";
Dir::State::status "$private/status";
Dir::Cache "$private/cache";
Acquire::Languages "none";
APT::Default-Release "";
APT::Sandbox::User "";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Pre-Invoke;
EOF
  apt-get -c "$private/apt.conf" update -qq
}

unpack() { # $1: the directory; all that was downloaded goes there
  for package in "$private"/cache/archives/*.deb; do
    dpkg -x "$package" "$1"
  done
}

get_runsc() {
  private_apt bookworm-backports || return 1
  (cd "$private/cache/archives" && apt-get -c "$private/apt.conf" download -qq runsc) || return 1
  unpack .tools/runsc && ln -sf ../runsc/usr/bin/runsc .tools/bin/runsc && .tools/bin/runsc --version >/dev/null
}

wrap() { # $1: a program below .tools/criu/usr, which runs with the loader and the libraries of that prefix
  program=.tools/bin/$(basename "$1")
  cat >"$program" <<EOF
#!/bin/sh
prefix=\$(dirname "\$(readlink -f "\$0")")/../criu/usr
exec "\$(echo "\$prefix"/lib*/ld-linux-*.so.*)" --library-path "\$(echo "\$prefix"/lib/*-linux-gnu*)" "\$prefix/$1" "\$@"
EOF
  chmod 755 "$program"
}

get_criu() { # $1: the suite
  rm -rf .tools/criu
  private_apt "$1" || return 1
  apt-get -c "$private/apt.conf" install -qq -y --no-install-recommends --download-only criu >/dev/null || return 1
  unpack .tools/criu || return 1
  wrap sbin/criu
  version=$(.tools/bin/criu --version | sed -n 's/^Version: *//p')
  dpkg --compare-versions "${version:-0}" ge 4.2
}

get_checkpointctl() { # of the suite that criu was got from
  rm -f "$private"/cache/archives/*.deb
  (cd "$private/cache/archives" && apt-get -c "$private/apt.conf" download -qq checkpointctl) || return 1
  unpack .tools/criu && wrap bin/checkpointctl && .tools/bin/checkpointctl show --help >/dev/null
}

echo "setup: fetching runsc, criu and checkpointctl"
mkdir -p .tools/bin
get_runsc || missing "runsc of bookworm-backports"
if get_criu forky || get_criu sid; then
  [ "$(id -u)" != 0 ] || .tools/bin/criu check >/dev/null 2>&1 || echo "setup: criu check complains here: $(.tools/bin/criu check 2>&1 | tail -n 1)" >&2
  get_checkpointctl || missing checkpointctl
else
  rm -f .tools/bin/criu .tools/bin/checkpointctl
  missing "criu 4.2 or later of forky or sid"
fi
rm -rf "$private"
[ $complete = no ] || echo "$wanted" >$made
