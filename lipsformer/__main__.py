"""`python -m lipsformer` is the `lipsformer` command."""

from .cli import main

if __name__ == "__main__":
    main()
