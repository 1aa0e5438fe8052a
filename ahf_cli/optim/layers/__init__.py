"""Models that are chains of known layers: the loss and its derivatives layer by layer, for K trials at once.

`record` finds the chain in the forward pass of any `nn.Module`.  `ExplicitLinearization`
differentiates it without graphs.  All other models keep to automatic differentiation.
"""
