"""`python -m overtone`, and `torchrun -m overtone`."""

from overtone.cli import main

if __name__ == "__main__":
    main()
