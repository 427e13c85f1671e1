import sys

from webai_api.cli import main

sys.exit(main())
