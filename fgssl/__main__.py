import sys

from fgssl.cli.main import main

sys.exit(main())
