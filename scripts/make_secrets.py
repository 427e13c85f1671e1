"""Make the secrets that compose.yaml mounts, in the folder given. What exists is kept.

Compose mounts a secret's file with the owner and mode it has on the host, and the two containers run as different
users. So the folder keeps everybody else out (0700), and the files in it may be read by whoever they are mounted for.
"""

import secrets
import sys
from pathlib import Path


def main() -> int:
    """Write what is missing and tell where the API key is."""
    folder = Path(sys.argv[1])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    write_once(folder / "redis_password", secrets.token_urlsafe(32))
    write_once(folder / "webai_api_keys", f"default:{secrets.token_urlsafe(32)}")
    print(f"The API key is what follows 'default:' in {folder / 'webai_api_keys'}.")
    print("Send it as 'Authorization: Bearer KEY'.")
    return 0


def write_once(path: Path, secret: str) -> None:
    """Write *secret* unless the file is there already."""
    try:
        with path.open("x") as file:
            file.write(secret + "\n")
    except FileExistsError:
        print(f"kept {path}")
    else:
        path.chmod(0o444)
        print(f"made {path}")


if __name__ == "__main__":
    sys.exit(main())
