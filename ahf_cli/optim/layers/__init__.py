"""Models that are chains of known layers: the loss and its derivatives layer by layer, for K trials at once.

`record` finds the chain in any `nn.Module` by what its forward pass does.  `ExplicitLinearization`
differentiates it without graphs.  All other models keep to automatic differentiation.
"""
