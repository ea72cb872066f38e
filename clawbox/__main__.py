"""``python -m clawbox`` is ``clawbox``."""

from clawbox.cli import main

if __name__ == "__main__":
    main()
