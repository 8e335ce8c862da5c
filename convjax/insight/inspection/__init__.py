"""What a network is: its layers, what they cost and see, and where its time goes."""
