"""Random maps from P gradient coordinates to D numbers that keep inner products on average.

Every entry is a function of (seed, coordinate, column) through a 64-bit integer hash, so one seed is one matrix, bit
for bit, on every device, and none of it need be stored. Each projector's docstring says what its estimate of x . y is
worth.
"""
