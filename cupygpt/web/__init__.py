"""How do files come from the network?"""
