"""``python -m infra.cli`` is ``shrinkstream``."""

from infra.cli.main import main

main()
