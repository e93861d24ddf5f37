"""`python -m dinocell` is the `dinocell` command."""

from dinocell.cli import main

if __name__ == "__main__":
    main()
