"""The layers that the job names, cut from file to file."""

from __future__ import annotations

from elder_core.errors import LayersNotNamed
from elder_core.methods.base import Context, Method, Selection
from elder_core.parameters import CutParameters


class Cut(Method):
    """The layers that the job names. The pipeline removes them without loading the model (elder_core.cutting)."""

    def __init__(self, parameters: CutParameters) -> None:
        self.parameters = parameters

    def select(self, context: Context, count: int) -> Selection:
        """Choose nothing.

        Raises:
            LayersNotNamed: always; a job that names its layers does not ask.
        """
        raise LayersNotNamed("The method cut chooses no layers: name them in layers.", loc=("method", "name"))
