"""Entry points: pick a role and import only that."""

import sys


def daemon() -> None:
    from holdfast.launch import main

    sys.exit(main())


def cli() -> None:
    from holdfast.cli.main import main

    main()


if __name__ == "__main__":
    cli()
