"""One addition for each row of CONTRIBUTING.md's table."""

from house.backend import BACKEND
from house.format import FORMAT
from house.kernel import KERNEL
from house.rule import RULE

ADDITIONS = {addition.thing: addition for addition in (RULE, KERNEL, FORMAT, BACKEND)}
