"""`python -m onnxpq`."""

import sys

from onnxpq.cli import main

sys.exit(main())
