"""Traces: the requests that a volume was sent, one after the other, and what can be said of them.

records     what a request is, and our own file format
reading     the one way in: a file of any format becomes a `Trace`
iolog       fio's iolog, versions 2 and 3, read and written
blkparse    the text that blkparse prints, read
summary     numbers about a trace
heatmap     where in the volume the requests went, over time, as an SVG picture
"""
