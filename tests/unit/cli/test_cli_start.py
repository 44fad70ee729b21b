"""A process of its own: what it loads, what it draws on a terminal, how it ends."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

NOT_FOR_A_LISTING = {"rich", "yaml", "httpx", "apsw", "zstandard", "tomllib", "argparse", "holdfast.config"}


def command(fake, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "holdfast", "--socket", f"{fake.directory}/s", *arguments]


def test_a_listing_imports_little(fake) -> None:
    fake.add("1", "web")
    code = (
        "import sys, holdfast.__main__ as entry\n"
        "try: entry.cli()\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--socket", f"{fake.directory}/s", "ps"],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    loaded = set(done.stderr.split())
    assert "web" in done.stdout
    assert not NOT_FOR_A_LISTING & loaded
    assert not [name for name in loaded if name.startswith(("holdfast.store", "holdfast.lifecycle", "grpc.aio."))]


def test_help_imports_no_grpc() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "holdfast", "--help"], capture_output=True, text=True, check=True
    )
    assert "| grpc" not in done.stderr
    assert "recovery" in done.stdout


def on_a_terminal(arguments: list[str]) -> str:
    main, other = pty.openpty()
    with open(main, "rb", buffering=0) as terminal:
        process = subprocess.Popen(arguments, stdout=other, stderr=other, env={**os.environ, "TERM": "xterm"})
        os.close(other)
        shown = b""
        try:
            while data := terminal.read(65536):
                shown += data
        except OSError:  # EIO: the other side is closed
            pass
        assert process.wait(timeout=30) == 0
    return shown.decode()


def test_a_table_on_a_terminal(fake) -> None:
    fake.add("1", "web")
    shown = on_a_terminal(command(fake, "ps"))
    assert "\x1b[1mCONTAINER" in shown
    assert "c111111111111" in shown


def test_bars_on_a_terminal(fake, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(b"x" * 1000)
    shown = on_a_terminal(command(fake, "image", "import", str(archive)))
    assert "unpack" in shown
    assert "imported/1000:latest" in shown


@pytest.mark.parametrize("arguments", [("--help",), ("ps", "-a")])
def test_a_reader_that_has_had_enough(fake, arguments: tuple[str, ...]) -> None:
    for digit in "123456789":
        fake.add(digit, "web")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        done = subprocess.run(command(fake, *arguments), stdout=closed, stderr=subprocess.PIPE, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, b"")


def test_debug_shows_where_it_came_from(fake) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "--debug", "--socket", "/nonexistent", "ps"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
