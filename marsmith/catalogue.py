"""torchvision's own networks, made by torchvision's own builder from a local file.

With weights a builder does more than load them: it freezes batch norms, overwrites their eps,
switches parts on or off and renames old keys. So the builder itself does it here, and what it
made is what every artifact is compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from handlers import vision
from handlers.errors import PluginError, WeightsError, one_line
from handlers.servable import torchvision_entry


def network(recipe: Mapping[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """``torchvision.models.get_model(name, weights=ENTRY)`` with ``state`` for the entry's file.

    Raises WeightsError where ``state`` does not fit, PluginError where the arguments do not.
    """
    name = recipe["architecture"].partition(":")[2]
    entry = torchvision_entry(name, recipe["entry"])
    try:
        # A copy, as densenet's builder renames its keys, with the versions that modules look at.
        with patch.object(entry, "get_state_dict", lambda **_: copy.copy(state)):
            made: nn.Module = vision.torchvision().models.get_model(
                name, weights=entry, **recipe["arguments"]
            )
            return made
    except (ValueError, TypeError) as error:
        raise PluginError(
            f"torchvision:{name} with weights {entry.name} and arguments {recipe['arguments']}: "
            f"{error}"
        ) from error
    except (RuntimeError, AttributeError, KeyError) as error:
        detail = one_line(error, 600)
        raise WeightsError(
            f"the weights are not of torchvision's {name} as {entry.name} has it: {detail}"
        ) from error
