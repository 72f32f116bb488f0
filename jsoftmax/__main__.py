"""`python -m jsoftmax`: see `jsoftmax._cli`."""

from jsoftmax._cli import main

raise SystemExit(main())
