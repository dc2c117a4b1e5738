"""Which function computes which ONNX operator in torch.

An operator is known by its domain, its type and the version in force: the largest ``since_version`` in ONNX's schemas
that is not above the opset that the model imports. To add an operator, write a function in the file of its family and
decorate it::

    @register("Elu", 6, 22)
    def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor: ...

The contract of such a function (a *handler*):

* The node's inputs are its positional parameters, an omitted one is None; the attributes are keyword-only parameters
  with ONNX's names and defaults (a test compares them with the schemas). Attributes arrive as int, float, str, list,
  tensor; a graph arrives as a function of tensors that returns a list of values.
* It returns the output, or a tuple of the outputs. If it has a keyword ``n_outputs`` it is told how many the node has;
  if it has one ``input_type``, the ONNX element type of the first input, None where the model does not tell.
* It computes what ONNX's *inference* semantics say, differentiably, and never changes its inputs.
* What it cannot do it refuses with an `UnsupportedOperatorError`; the caller adds the node's name.
* Values of type string are numpy arrays of objects, as torch has no such tensors.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import onnx
from torch import Tensor

from onnxpq.errors import ConfigError, OnnxpqError, UnsupportedOperatorError
from onnxpq.graph import is_private

Handler = Callable[..., Any]
_F = TypeVar("_F", bound=Handler)

ONNXRUNTIME = "onnxruntime"
"""Stands for the domain ai.onnx of operators that onnxruntime alone has there (`onnxpq.graph.private`)."""

_TOLD = frozenset({"n_outputs", "input_type"})
"""Keywords of handlers that are no attributes of ONNX."""

_built_in: dict[tuple[str, str], dict[int, Handler]] = {}
_users: dict[tuple[str, str], dict[int, Handler]] = {}


def canonical_domain(domain: str) -> str:
    """ONNX's two names of its default domain are one."""
    return "" if domain == "ai.onnx" else domain


def register(op_type: str, *versions: int, domain: str = "") -> Callable[[_F], _F]:
    """Declare the decorated function as the handler of exactly these versions of an operator of ONNX.

    Args:
        op_type: the operator, e.g. "Gemm".
        versions: every ``since_version`` of its schema that the function computes.
        domain: "" is ai.onnx.

    Raises:
        ConfigError: if one of them has a handler already.
    """

    def add(fn: _F) -> _F:
        for version in versions:
            _add(_built_in, domain, op_type, fn, version)
        return fn

    return add


def register_op(domain: str, op_type: str, fn: Handler, since_version: int = 1) -> None:
    """Teach the importer an operator of your own, or a version of ONNX's that it does not know.

    The function serves `since_version` and every later version, up to the next one that is registered; what onnxpq
    itself computes has precedence. Its contract is that of `onnxpq.network.ops.registry`.

    Args:
        domain: domain of the operator, "" is ai.onnx.
        op_type: its type.
        fn: function of the input tensors (torch) and, by keyword, of the attributes; it returns a tensor or a tuple of
            them. Where it can be differentiated, the layers before it are trained through it.
        since_version: first opset version of the domain that it is right for.

    Raises:
        ConfigError: if this version has a handler already, or an argument is not what it has to be.
    """
    if not isinstance(domain, str) or not isinstance(op_type, str) or not op_type:
        raise ConfigError(
            f"The 'domain' and 'op_type' of register_op must be strings, the latter not empty. Got {domain!r} and "
            f"{op_type!r} instead."
        )
    if not callable(fn):
        raise ConfigError(
            f"The 'fn' of register_op must be a function of the input tensors of {domain}::{op_type}. Got {fn!r} "
            "instead."
        )
    if isinstance(since_version, bool) or not isinstance(since_version, int) or since_version < 1:
        raise ConfigError(
            f"The 'since_version' of register_op must be an integer of at least 1. Got {since_version!r} instead."
        )
    version = version_in_force(domain, op_type, since_version)
    if version in _built_in.get((canonical_domain(domain), op_type), {}):
        raise ConfigError(
            f"Operator {describe(domain, op_type, version)} has a handler in onnxpq already. "
            "Register a version that it has no handler for."
        )
    _add(_users, domain, op_type, _guarded(fn), since_version)


def is_users(domain: str, op_type: str) -> bool:
    """Whether `register_op` has taught the importer a version of this operator."""
    return (canonical_domain(domain), op_type) in _users


def version_in_force(domain: str, op_type: str, opset: int) -> int:
    """The ``since_version`` of the operator's schema at `opset`; `opset` itself where ONNX knows no schema."""
    try:
        return int(onnx.defs.get_schema(op_type, opset, canonical_domain(domain)).since_version)
    except onnx.defs.SchemaError:
        return opset


def resolve(domain: str, op_type: str, opset: int, node: str) -> Handler:
    """Find the handler of an operator.

    Args:
        domain: domain of the node.
        op_type: type of the node.
        opset: version of the domain that the model imports.
        node: name of the node, for the message.

    Raises:
        UnsupportedOperatorError: if no handler serves the version in force.
    """
    domain = canonical_domain(domain)
    is_own = is_private(domain, op_type, opset)
    version = 1 if is_own else version_in_force(domain, op_type, opset)
    known = _built_in.get((ONNXRUNTIME if is_own else domain, op_type), {})
    if version in known and _schema_is_current(domain, opset):
        return known[version]
    users = {since: fn for since, fn in _users.get((domain, op_type), {}).items() if since <= opset}
    if users:
        return users[max(users)]
    raise UnsupportedOperatorError(
        f"Node '{node}' uses operator {describe(domain, op_type, version)} (the model imports version {opset} of the "
        f"domain), which onnxpq cannot train through{_what_is_known(known, domain, opset)}. Exclude the layers before "
        "this node from the compression, teach the operator with onnxpq.register_op, or compress without data "
        "(plain product quantization, which needs no training).",
        node=node,
    )


def describe(domain: str, op_type: str, version: int) -> str:
    """Name of an operator in messages, e.g. ``ai.onnx::Gemm version 13``."""
    return f"{domain or 'ai.onnx'}::{op_type} version {version}"


def registered() -> dict[tuple[str, str, int], Handler]:
    """All operators that onnxpq itself knows: (domain, type, version) -> handler."""
    return {(*name, version): fn for name, by_version in _built_in.items() for version, fn in by_version.items()}


def attributes_of(handler: Handler) -> dict[str, Any]:
    """Names and defaults of the attributes that a handler takes (`inspect.Parameter.empty`: it is required)."""
    parameters = inspect.signature(handler).parameters.values()
    return {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("n_outputs", "input_type")
    }


def _add(
    table: dict[tuple[str, str], dict[int, Handler]], domain: str, op_type: str, fn: Handler, version: int
) -> None:
    by_version = table.setdefault((canonical_domain(domain), op_type), {})
    if version in by_version:
        raise ConfigError(
            f"Operator {describe(canonical_domain(domain), op_type, version)} has a handler already: "
            f"{getattr(by_version[version], '__name__', by_version[version])}."
        )
    by_version[version] = fn


def _guarded(fn: Handler) -> Handler:
    """A user's function whose mistakes become errors that the caller gives the node's name to."""
    name = getattr(fn, "__name__", repr(fn))

    @functools.wraps(fn)
    def call(*inputs: Any, **attributes: Any) -> Any:
        try:
            found = fn(*inputs, **attributes)
        except (RuntimeError, OnnxpqError):
            raise
        except Exception as error:
            raise RuntimeError(f"{name} raised {type(error).__name__}: {error}") from error
        for result in found if isinstance(found, tuple) else (found,):
            if not isinstance(result, Tensor):
                raise TypeError(f"{name} returned {type(result).__name__}; expected a torch.Tensor or a tuple of them")
        return found

    return call


def _schema_is_current(domain: str, opset: int) -> bool:
    """False if the model is newer than the onnx package, which then cannot tell whether an operator has changed."""
    newest = onnx.defs.onnx_opset_version() if domain == "" else None
    return newest is None or opset <= newest


def _what_is_known(known: dict[int, Handler], domain: str, opset: int) -> str:
    if not _schema_is_current(domain, opset):
        return f" (the installed onnx package knows opsets up to {onnx.defs.onnx_opset_version()})"
    return f" (it knows versions {', '.join(map(str, sorted(known)))})" if known else ""
