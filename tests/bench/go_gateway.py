"""Builds the gateway in Go, where there is a Go toolchain; the binary is kept until source or toolchain changes.

The modules that it needs come by `go` from the module proxy, as go.sum has them.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("peers") / "go_gateway"
FILES = ("main.go", "go.mod", "go.sum")
BUILD_S_MAX = 600


class NotBuilt(Exception):
    """Why, in one line."""


def build(directory: Path) -> Path:
    """Raises NotBuilt."""
    go = shutil.which("go")
    if go is None:
        raise NotBuilt("go is not installed")
    version = subprocess.run([go, "version"], capture_output=True, text=True, timeout=20, check=False).stdout
    sources = b"".join((SOURCE / name).read_bytes() for name in FILES)
    digest = hashlib.sha256(version.encode() + sources).hexdigest()[:12]
    binary = directory.resolve() / f"go_gateway-{digest}"
    if not binary.exists():
        directory.mkdir(parents=True, exist_ok=True)
        beside = binary.with_suffix(".new")
        command = [go, "build", "-buildvcs=false", "-o", str(beside), "."]
        environment = {**os.environ, "GOFLAGS": "-mod=mod"}
        try:
            built = subprocess.run(
                command, cwd=SOURCE, env=environment, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False
            )
        except subprocess.TimeoutExpired:
            raise NotBuilt(f"go build did not end within {BUILD_S_MAX} s") from None
        if built.returncode:
            raise NotBuilt(f"go build failed: {' '.join(built.stderr.split())[-300:]}")
        beside.replace(binary)
    return binary
