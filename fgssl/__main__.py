import sys

from fgssl.cli import main

sys.exit(main())
