"""Devices that this machine lacks: tensors that say they are on `maia:1`, with numbers on the CPU.

Every operation is run for real, and refused where it would be on real devices: when its tensors are
not on one and the same.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

waits: list[str] = []
"""Each time that a number came from a pretended device to the host, or went from there to it."""
_MAY_CROSS = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class Pretend(torch.Tensor):
    """A tensor that says it is on another device."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> "Pretend":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        new = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, **layout)
        new.inner, new.place = inner, device
        return new

    @property
    def device(self) -> torch.device:
        return self.place

    def to(self, *args, **options):
        if {str(a) for a in (*args, *options.values())} & {"cpu"}:
            waits.append("to")
            return self.inner.to(*args, **options)
        return super().to(*args, **options)

    def cpu(self) -> torch.Tensor:
        waits.append("cpu")
        return self.inner

    def tolist(self) -> list:
        waits.append("tolist")
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self) -> str:
        return f"Pretend({self.device}, {self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class PretendDevices(TorchDispatchMode):
    """Inside, `device="maia:1"` makes such tensors."""

    def __enter__(self):
        # So that `torch.tensor` makes its tensor on the CPU and then comes here to move it.
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *failure):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*failure)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    given, wrappers = set(), {}

    def unwrap(x):
        if isinstance(x, Pretend):
            given.add(x.device)
            wrappers[id(x.inner)] = x
            return x.inner
        if isinstance(x, torch.Tensor) and x.dim():  # single numbers may come from the CPU
            given.add(x.device)
        return x

    args, kwargs = tree_map(unwrap, (args, kwargs))
    if wrappers and func is torch.ops.aten._local_scalar_dense.default:
        waits.append("item")
    if len(given) > 1:
        waits.append("copy")
    if len(given) > 1 and func not in _MAY_CROSS:
        raise RuntimeError(f"{func} of tensors on {sorted(map(str, given))}")
    target = args and wrappers.get(id(args[0]))
    place = target.device if isinstance(target, Pretend) else next(iter(given), torch.device("cpu"))
    if kwargs.get("device") is not None:
        place = torch.device(kwargs["device"])
        kwargs = {**kwargs, "device": torch.device("cpu")}

    def wrap(x):
        if not isinstance(x, torch.Tensor) or place.type == "cpu":
            return x
        return wrappers.get(id(x)) if id(x) in wrappers else Pretend(x, place)

    return tree_map(wrap, func(*args, **kwargs))
