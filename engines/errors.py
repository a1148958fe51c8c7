"""What can go wrong below the server, as sentences that tell what to do. Knows nothing of HTTP statuses.

EngineError
 ├─ ImageError            the bytes are no picture that can be decoded
 │   └─ ImageTooLarge     its header announces more pixels than the limit
 ├─ UnknownModel          a name that the catalogue does not have for this kind
 ├─ WeightsMissing        weights neither in the cache folder nor to be had
 ├─ WeightsBroken         a weights file that cannot be read or does not fit its network
 ├─ BuildFailed           a backend cannot compile a network, or what came out did not pass the gate
 ├─ ArtefactBroken        a built engine that cannot be loaded
 ├─ EngineMissing         the settings want an engine or a device that is not there
 └─ OutOfMemory           a single input does not fit into the memory of its device
"""


class EngineError(Exception):
    """Base of all errors that engines/ raises on purpose; `str()` of it may be shown to a user."""


class ImageError(EngineError):
    """The bytes are no picture, are cut off, or have zero width or height."""


class ImageTooLarge(ImageError):
    """The header announces more pixels than the limit; raised before anything is decoded."""


class UnknownModel(EngineError):
    """The name is not in the catalogue, or belongs to another kind of model."""


class WeightsMissing(EngineError):
    """Weights are neither in the cache folder nor to be had; names the folder, the file and the command."""


class WeightsBroken(EngineError):
    """A weights file is unreadable, or its tensors do not fit the network."""


class BuildFailed(EngineError):
    """A backend cannot compile a network, or what it compiled did not pass the gate; says why."""


class ArtefactBroken(EngineError):
    """The files of a built engine cannot be loaded."""


class EngineMissing(EngineError):
    """The settings want an engine, a precision or a device that is not there; says what to do."""


class OutOfMemory(EngineError):
    """A single input does not fit into the memory of its device."""
