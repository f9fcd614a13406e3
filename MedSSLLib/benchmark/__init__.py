"""Label efficiency and speed, measured the same way for every row, with records, tables and
reports.
"""
