"""The errors that users see. Each message says what happened, the numbers, and what to do."""


class CupyGPTError(Exception):
    """Base of every error that is reported as one message, without a traceback."""

    exit_code = 2


class ConfigError(CupyGPTError, ValueError):
    """A flag or a model shape that cannot work."""


class DataError(CupyGPTError, ValueError):
    """A token file or text that is missing, damaged, too short or does not fit the model."""


class TokenizerError(CupyGPTError, ValueError):
    """A tokenizer that cannot be loaded, or that does not fit the model."""


class CheckpointError(CupyGPTError, ValueError):
    """A model or state file that is missing, damaged or does not fit the run."""


class DeviceError(CupyGPTError, RuntimeError):
    """The chosen device is missing, unusable or too small."""


class KernelError(CupyGPTError, RuntimeError):
    """A CUDA kernel that does not compile, or a launch with wrong arguments."""


class LabError(CupyGPTError, ValueError):
    """A kernel file, exercise or launch line of the lab that cannot be used as it is."""


class RunError(CupyGPTError, RuntimeError):
    """A run that started well and cannot continue (NaN loss, full disk); exit code 1."""

    exit_code = 1
