"""Push to and pull from a server that speaks S3's protocol, by the console program itself.

    .venv/bin/python bench/s3.py --moto path/to/moto_server        moto_server: pip install 'moto[server]', in an environment of its own

It starts the server on a free port of loopback, pushes each demo model twice, pulls it into an empty repository, asks for one that is not
there, and prints a line for each.
"""

import argparse
import filecmp
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from training.files.digests import SHIPPED

ROOT = Path(__file__).parent.parent
SECONDS = 30


def ganserve(*words: str | Path, environment: dict[str, str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "ganserve", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    return ran.returncode, (ran.stdout + ran.stderr).strip()


def wait_for(address: str) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            httpx.put(f"{address}/bucket")
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nobody answers at {address}")


def transfer(folder: Path, environment: dict[str, str]) -> None:
    for digest, version in SHIPPED.items():
        steps = {
            "push": ("models", "push", version, "s3://bucket/models"),
            "push again": ("models", "push", version, "s3://bucket/models"),
            "pull": ("models", "pull", f"s3://bucket/models/{version}", "--yes", "--digest", digest),
            "pull another": ("models", "pull", f"s3://bucket/models/{version}7"),
        }
        for name, words in steps.items():
            where = ("--models", ROOT / "models") if "push" in name else ("--models", folder / "models", "--state", folder / "state")
            begin = time.perf_counter()
            code, said = ganserve(*words, *where, environment=environment)
            print(f"{version:<10} {name:<13} exit {code}  {time.perf_counter() - begin:5.2f} s  {said}")
        files = [path.name for path in (ROOT / "models" / version).iterdir()]
        same, *_ = filecmp.cmpfiles(ROOT / "models" / version, folder / "models" / version, files, shallow=False)
        print(f"{version:<10} {len(same)} of {len(files)} files came back as they were")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moto", default="moto_server", help="the program moto_server")
    given = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    keys = {"AWS_ENDPOINT": address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    environment = os.environ | keys | {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    server = subprocess.Popen([given.moto, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(address)
        with tempfile.TemporaryDirectory() as folder:
            transfer(Path(folder), environment)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
