"""`vpnd`: the program's first moment; what it does is in vpnd.program."""

from vpnd import early_signals


def main() -> None:
    """Entry point of the program `vpnd`."""
    # Before what takes long to load: a SIGHUP meanwhile is no reason to end
    early_signals.hold()
    from vpnd import program

    try:
        program.main()
    finally:
        early_signals.ignore()


if __name__ == "__main__":
    main()
