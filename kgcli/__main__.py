"""`python -m kgcli`: the same as `kg`; what torchrun and accelerate start."""

from kgcli.cli import main

if __name__ == "__main__":
    main()
