"""What an action is: the relative transformation between two views, as an element of a group.

| group | parameters t of a view | an action | distance |
|---|---|---|---|
| [`Translation`][seqjepa.groups.Translation] | any vector | the difference | that of the vectors |
| [`Rotation2D`][seqjepa.groups.Rotation2D] | angle, radians | angle in [−π, π) | radians |
| [`Rotation3D`][seqjepa.groups.Rotation3D] | unit quaternion x y z w | unit quaternion, w ≥ 0 | geodesic, radians |
| [`Hue`][seqjepa.groups.Hue] | hue, turns | turn in [−½, ½) | turns |
| [`Scale`][seqjepa.groups.Scale] | size, above 0 | log of the ratio | logs |
| [`Flip`][seqjepa.groups.Flip] | 0, or 1 where mirrored | 1 where it changes | 0 or 1 |
| [`Crop`][seqjepa.groups.Crop] | y, x, height, width, flip | where the next lies as seen from this one | mixed |
| [`Product`][seqjepa.groups.Product] | those of its parts | those of its parts, by name | mixed, or by name |

All obey the laws of [`Group`][seqjepa.groups.Group], and all have local coordinates: a rotation of space the rotation
vector, a window its shift and logarithms, a flip none, the others their numbers. Write your own by its operations;
[`check_group`][seqjepa.groups.check_group] holds it to the laws.
"""

from seqjepa.groups.base import Group
from seqjepa.groups.crops import Crop, Flip
from seqjepa.groups.laws import check_group
from seqjepa.groups.lines import Hue, Rotation2D, Scale, Translation
from seqjepa.groups.product import Product
from seqjepa.groups.rotations import Rotation3D

__all__ = ["Crop", "Flip", "Group", "Hue", "Product", "Rotation2D", "Rotation3D", "Scale", "Translation", "check_group"]
