"""`python -m conlora` is the console command."""

from conlora.cli.main import main

if __name__ == "__main__":
    main()
