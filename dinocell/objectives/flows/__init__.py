"""Flows: the default objective (Cellpose; Stringer et al. 2021)."""

from dinocell.objectives.flows.objective import DecodeReport, FlowsObjective, decode_flows, flows_to_masks
from dinocell.objectives.flows.targets import flow_errors, masks_to_flows

__all__ = ["DecodeReport", "FlowsObjective", "decode_flows", "flow_errors", "flows_to_masks", "masks_to_flows"]
