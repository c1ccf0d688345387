"""`python -m vaecli` is the same program as `vae`."""

from vaecli.cli import main

if __name__ == "__main__":
    main()
