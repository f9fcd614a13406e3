"""Label efficiency and speed, measured alike for every row: records, tables, reports."""
