"""What an imported model is: its source by name and content, and the type that its weights are kept in."""

from typing import Literal

from configs import Spec


class ImportSpec(Spec):
    """A model of Hugging Face that was imported: the name of its folder or file, the hash of all that was read, and `dtype`.

    Where the source lay is no part of it: the same model from another place is the same.
    """

    job: Literal["import"] = "import"
    source: str
    source_hash: str
    dtype: Literal["file", "float32", "bfloat16", "float16"] = "file"
