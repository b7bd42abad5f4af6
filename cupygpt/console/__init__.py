"""What does a person see, on a terminal and anywhere else?"""
