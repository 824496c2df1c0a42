"""marsmith's build pipeline and operation of TorchServe; never travels inside an archive."""

__version__ = "0.1.0"
