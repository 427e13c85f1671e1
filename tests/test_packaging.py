"""What is shipped: the image, the Compose services and the repository's files, checked without a container engine."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from tests.servers import RedisServer, free_port, redis_binary

ROOT = Path(__file__).parent.parent
VARIABLES = {  # what the documentation promises to read; *_FILE variants aside
    *("REDIS_ENABLED", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_TTL"),
    *("REDIS_URL", "SESSION_STORE", "SESSION_TTL", "WEBAI_HOST", "WEBAI_PORT", "WEBAI_LOG_LEVEL", "WEBAI_API_KEYS"),
    *("WEBAI_MAX_BODY_BYTES", "WEBAI_HISTORY_LIMIT", "WEBAI_ON_INTERRUPT", "GEMINI_API_KEY", "GEMINI_BASE_URL"),
    *("OPENAI_API_KEY", "OLLAMA_BASE_URL"),
}


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return document


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions in order, each with its arguments on one line."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in joined.split("\n"))
    ]


def tracked_files() -> list[Path]:
    """Return what is in the repository or would be added to it."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))


# The image, as ordinary processes


@contextmanager
def running(command: list[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, cwd=cwd, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def request(port: int, method: str, path: str, *, key: str | None = None, body: object = None) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    return response.status, json.loads(content) if "json" in response.headers.get("Content-Type", "") else content


def wait_until_ready(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 20
    answer: object = None
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text()}")
        try:
            answer = request(port, "GET", "/readyz")
        except (OSError, HTTPException) as error:
            answer = error
        else:
            if answer[0] == 200:
                return
        time.sleep(0.05)
    pytest.fail(f"/readyz answered {answer} for 20 s:\n{log.read_text()}")


@pytest.fixture
def secrets_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_secrets.py"), str(folder)], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy and install what the Dockerfile copies and installs; return the folder of the installed programs."""
    target = tmp_path_factory.mktemp("image")
    workdir, programs = target / "workdir", target / "venv" / "bin"
    workdir.mkdir()
    subprocess.run([sys.executable, "-m", "venv", target / "venv"], check=True)
    for instruction, rest in dockerfile():
        if instruction == "COPY":
            *sources, destination = rest.split()
            copy(sources, workdir / destination, into_folder=destination.endswith("/"))
        elif instruction == "RUN" and rest.startswith("pip "):
            arguments = [argument for argument in shlex.split(rest)[1:] if argument != "--no-cache-dir"]
            command = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
            done = subprocess.run(command, check=False, cwd=workdir, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return programs


def copy(sources: list[str], destination: Path, *, into_folder: bool) -> None:
    for source in sources:
        target = destination / Path(source).name if into_folder else destination
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)


@pytest.mark.slow
@pytest.mark.timeout(180)  # installs into a fresh environment, over the network when pip has nothing cached
def test_the_image_serves_a_remembered_conversation_with_the_environment_of_compose(
    image: Path, secrets_folder: Path, tmp_path: Path
) -> None:
    service = compose()["services"]["webai-api"]
    password = (secrets_folder / "redis_password").read_text().strip()
    key = (secrets_folder / "webai_api_keys").read_text().strip().removeprefix("default:")
    given = {name: str(value) for name, value in service["environment"].items() if value is not None}
    mounted = {name: value.replace("/run/secrets", str(secrets_folder)) for name, value in given.items()}
    port, log, workdir = free_port(), tmp_path / "server.log", tmp_path / "data"
    workdir.mkdir()
    (command,) = [json.loads(rest) for instruction, rest in dockerfile() if instruction == "CMD"]
    assert command[-2:] == ["--port", "6969"]
    assert service["ports"] == ["127.0.0.1:6969:6969"]
    start = [str(image / command[0]), *command[1:-1], str(port)]

    with RedisServer(password=password, appendonly=True) as redis:
        assert mounted["REDIS_HOST"] == "redis"
        local = {"PATH": f"{image}:{os.environ['PATH']}", "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis.port)}
        for said, expected in [("my name is Ada", ""), ("what is my name?", "Ada")]:  # a restart between the two
            with running(start, env=mounted | local, cwd=workdir, log=log) as process:
                wait_until_ready(port, process, log)
                assert health_check(image, port) == 0
                body = {"model": "demo", "session_id": "s", "messages": [{"role": "user", "content": said}]}
                status, _ = request(port, "POST", "/v1/chat/completions", body=body)
                assert status == 401
                status, answer = request(port, "POST", "/v1/chat/completions", key=key, body=body)
                assert status == 200, answer
                assert expected in answer["choices"][0]["message"]["content"]
    assert key not in log.read_text()
    assert password not in log.read_text()
    assert health_check(image, port) != 0


def health_check(image: Path, port: int) -> int:
    (check,) = [rest for instruction, rest in dockerfile() if instruction == "HEALTHCHECK"]
    program, *arguments = json.loads(check[check.index("[") :])
    local = [argument.replace("6969", str(port)) for argument in arguments]
    return subprocess.run([image / program, *local], check=False, capture_output=True).returncode


# Compose


def test_compose_starts_a_redis_that_wants_the_password_and_keeps_everything(
    secrets_folder: Path, tmp_path: Path
) -> None:
    service = compose()["services"]["redis"]
    password = (secrets_folder / "redis_password").read_text().strip()
    program, flags, script = (part.replace("$$", "$") for part in service["command"])
    port, log = free_port(), tmp_path / "redis.log"
    local = f"exec {shlex.quote(redis_binary())} --bind 127.0.0.1 --port {port} -"
    assert "exec redis-server -" in script
    script = script.replace("exec redis-server -", local).replace("/run/secrets", str(secrets_folder))

    with running([program, flags, script], env=dict(os.environ), cwd=tmp_path, log=log) as process:
        deadline = time.monotonic() + 10
        while b"PONG" not in redis_says(port, f"AUTH {password}", "PING"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        assert b"NOAUTH" in redis_says(port, "PING")
        settings = redis_says(port, f"AUTH {password}", "CONFIG GET appendonly", "CONFIG GET maxmemory-policy")
        assert b"yes" in settings
        assert b"noeviction" in settings
        shown = Path(f"/proc/{process.pid}/cmdline")
        assert not shown.exists() or password.encode() not in shown.read_bytes()


def redis_says(port: int, *commands: str) -> bytes:
    """Return the replies to inline commands; QUIT makes the server close, so all of them are there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall("".join(f"{command}\r\n" for command in [*commands, "QUIT"]).encode())
            return b"".join(iter(lambda: connection.recv(4096), b""))
    except OSError:
        return b""


def test_compose_publishes_the_server_on_loopback_and_redis_not_at_all() -> None:
    published = {name: service.get("ports", []) for name, service in compose()["services"].items()}
    assert published == {"webai-api": ["127.0.0.1:6969:6969"], "redis": []}


def test_compose_waits_for_a_healthy_redis_that_keeps_its_data() -> None:
    services = compose()["services"]
    assert services["webai-api"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert services["redis"]["volumes"] == ["redis_data:/data"]
    assert "redis_data" in compose()["volumes"]


def test_compose_names_secrets_by_file_only() -> None:
    document = compose()
    files = {f"./secrets/{name}" for name in ("redis_password", "webai_api_keys")}
    assert {secret["file"] for secret in document["secrets"].values()} == files
    environment = document["services"]["webai-api"]["environment"]
    assert "REDIS_PASSWORD" not in environment
    assert "WEBAI_API_KEYS" not in environment


def test_secrets_are_closed_to_others_and_never_overwritten(secrets_folder: Path) -> None:
    assert secrets_folder.stat().st_mode & 0o777 == 0o700
    before = {path.name: path.read_text() for path in secrets_folder.iterdir()}
    assert all(len(text.strip().removeprefix("default:")) >= 43 for text in before.values())
    command = [sys.executable, str(ROOT / "scripts" / "make_secrets.py"), str(secrets_folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert {path.name: path.read_text() for path in secrets_folder.iterdir()} == before
    assert not any(text.strip() in said for text in before.values())


# The repository


def test_no_file_names_a_package_index_or_a_folder_of_somebodys_machine() -> None:
    hosts = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.", "crates" + ".io", "anaconda" + ".org"]
    folders = ["/work" + "/main", "/work" + "/shared", "../" + "shared", "/opt" + "/py" + "pi"]
    forbidden = re.compile("|".join(map(re.escape, [*hosts, *folders, "--index" + "-url", "--extra" + "-index"])))
    named = {
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in tracked_files()
        if (found := forbidden.search(path.read_bytes().decode(errors="replace")))
    }
    assert not named


def test_dev_requirements_pin_what_run_requirements_pin() -> None:
    run, dev = pins("run.txt"), pins("dev.txt")
    assert run
    assert run.items() <= dev.items()


def test_every_pinned_requirement_has_a_hash() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        for pinned in re.split(r"^(?=[a-z0-9-]+==)", path.read_text(), flags=re.MULTILINE)[1:]:
            assert "--hash=sha256:" in pinned, f"{path.name}: {pinned.splitlines()[0]}"


def test_the_package_is_typed_and_leaves_the_name_app_to_its_users() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert (ROOT / "src" / "webai_api" / "py.typed").is_file()
    assert not (ROOT / "src" / "app" / "__init__.py").exists()


def test_the_example_environment_names_every_variable_and_can_be_used_as_it_is() -> None:
    text = (ROOT / ".env.example").read_text()
    shown = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))
    assert shown >= VARIABLES
    assert dotenv_values(ROOT / ".env.example") == {
        "REDIS_ENABLED": "false",
        "REDIS_HOST": "localhost",
        "REDIS_PORT": "6379",
        "REDIS_DB": "0",
        "REDIS_PASSWORD": "",
        "REDIS_TTL": "3600",
    }
