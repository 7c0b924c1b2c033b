"""`python FOLDER/clients LIBRARY ROLE ...`: a program of this folder, by any interpreter.

Invariant: nothing is importable because of where these files lie, neither from beside them (their
names are also those of libraries) nor from jitney, which that interpreter may not even have.
"""

import importlib
import os
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))

sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != HERE]
package = types.ModuleType("clients")
package.__path__ = [HERE]
sys.modules["clients"] = package
importlib.import_module("clients.program").main(sys.argv[1:])
