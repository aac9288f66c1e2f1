"""A report of the GPU code: registers, accesses to memory, instructions per element and the predicted bandwidth.

``python -m build_tools.sass`` prints it for the library that was built, and compares it with the committed budgets. It
needs cuobjdump and nvdisasm, but no GPU. See ``kernels`` for what is counted and ``prediction`` for the model.
"""
