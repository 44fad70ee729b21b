"""Entry points: pick a role and import only that."""

import gc
import sys
from types import ModuleType


def daemon() -> None:
    """holdfastd."""
    from holdfast.launch import main

    sys.exit(main())


def containerd_shim() -> None:
    """containerd-shim-holdfast-v1."""
    from holdfast.workers.containerd.main import main

    sys.exit(main())


def cli() -> None:
    """holdfast. A command that lives for a tenth of a second must not spend it on what it does not use."""
    gc.set_threshold(50_000)  # importing allocates much and frees nothing: collecting meanwhile costs 10 ms
    sys.modules["grpc.aio"] = ModuleType("grpc.aio")  # `import grpc` loads it always; only the daemon uses it; 10 ms
    from holdfast.cli.main import main

    main()


if __name__ == "__main__":
    cli()
