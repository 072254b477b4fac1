"""The Open Inference Protocol, version 2, over REST: the same models in the tongue of Triton's and KServe's clients.

A model of the protocol is a function with one set of inputs and one of outputs, and a model of ours holds several: `digits` is its
generator, `digits:discriminator` its discriminator, `digits:<part>` a part that runs. No name of a model can hold a colon.
"""
