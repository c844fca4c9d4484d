"""`python -m app.cli` is `segue`, for child processes that can't rely on the PATH."""

from app.cli import main

main()
