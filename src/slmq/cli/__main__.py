"""`python -m slmq.cli`."""

from slmq.cli import main

if __name__ == "__main__":
    main()
