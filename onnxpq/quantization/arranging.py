"""The subject with its layers' inputs as they quantize well: on one scale, and in the order that a layout asks for."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from onnxpq.graph import normalise
from onnxpq.network import matrices
from onnxpq.pq import Layout
from onnxpq.quantization import calibration, ordering, scaling
from onnxpq.quantization.subject import Ordered, Subject
from onnxpq.rewriting import find_layers, rescaling
from onnxpq.workspace import Run


def scaled(run: Run, subject: Subject) -> Subject:
    """The same with a Sub and a Mul before layers whose inputs differ by more than quantizing bears."""
    forms = subject.forms
    with run.stage("scaling"):
        found = scaling.scales(
            forms.prepared,
            forms.normal,
            subject.layers,
            subject.train,
            seed=run.config.seed,
            libraries=run.libraries,
        )
    if not found:
        return subject
    names = ", ".join(f"'{place.layer.node}'" for group, _ in found for place in group)
    if forms.is_widened:
        run.notes.append(
            f"Inputs differ much and stay as they are, as the model computes in bfloat16: those of {names}."
        )
        return subject
    run.notes.append(f"Inputs are in different units, or far from zero, and are brought to one scale before {names}.")
    prepared = rescaling.rescaled(forms.prepared, found)
    costs = {group[0].layer.node: rescaling.nbytes(group, scale) for group, scale in found}
    layers, _ = find_layers(prepared, run.config)
    layers = [replace(layer, input_bytes=costs.get(layer.node, 0)) for layer in layers]
    return replace(subject, forms=replace(forms, prepared=prepared, normal=normalise(prepared)), layers=layers)


def orderable(run: Run, subject: Subject) -> Subject:
    """The same with a Gather where another order of a layer's inputs pays, if the settings ask for that."""
    train, moments, forms = subject.train, subject.moments, subject.forms
    if not run.config.pq.reorder:
        return subject
    if train is None or forms.is_widened:
        lacking = "data tell which is better (--data)" if train is None else "the model computes in bfloat16"
        run.notes.append(f"The inputs of all layers keep their order: {lacking}.")
        return subject
    with run.stage("ordering"):
        grouped = ordering.groups(forms.prepared, subject.layers)
        found = calibration.collect(
            forms.normal, subject.layers, train, seed=run.config.seed, libraries=run.libraries, kept=moments
        )
        sizes = ordering.gaining(grouped, found, partial(matrices.weight, forms.normal), seed=run.config.seed)
    if not sizes:
        run.notes.append("The inputs of all layers keep their order: no other one saves enough.")
        return subject
    prepared, names = ordering.orderable(forms.prepared, grouped, sizes)
    costs = {grouped[value][0].node: ordering.order_bytes(len(size)) for value, size in sizes.items()}
    for old, new in names.items():
        moments.rename(old, new)
    layers = [replace(layer, input_bytes=layer.input_bytes + costs.get(layer.node, 0)) for layer in subject.layers]
    reordered = ", ".join(f"'{layer.node}'" for value in sizes for layer in grouped[value])
    run.notes.append(f"The inputs are put in another order, in which they quantize better, before {reordered}.")
    ordered = {names[value]: Ordered(grouped[value][0].weight, size) for value, size in sizes.items()}
    forms = replace(forms, prepared=prepared, normal=normalise(prepared))
    return replace(subject, forms=forms, layers=layers, ordered=ordered)


def arranged(subject: Subject, layouts: Mapping[str, Layout]) -> Subject:
    """The same with those inputs in the order that suits the length of the sub-vectors."""
    if not subject.ordered:
        return subject
    orders = {
        value: ordering.dealt(entry.sizes, layouts[entry.weight].sub_vector) for value, entry in subject.ordered.items()
    }
    forms = subject.forms.rewritten(partial(ordering.arranged, orders=orders))
    return replace(subject, forms=forms, moments=subject.moments.reordered(orders))
