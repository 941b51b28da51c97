"""Files of an instance that are generated from templates of its image: host name, hosts, cloud-init seeds.

Templates are written for Pongo2, which is similar to Django's; the parts that images use are translated
(`pongo2`) and rendered by Jinja2's sandbox (`rendering`), unless they are plain (`plain`).
"""
