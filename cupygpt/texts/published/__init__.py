"""How do the data sets that others have published get here?"""
