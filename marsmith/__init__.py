"""marsmith's build pipeline and operation of TorchServe; never travels inside an archive."""

import os

from marsmith.environment import WAIT_POLICY

__version__ = "0.1.0"

# Read when torch is loaded, which is later than this.
os.environ.setdefault("OMP_WAIT_POLICY", WAIT_POLICY)
