"""Elements of HTML and SVG."""

import json
from html.parser import HTMLParser
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from launcher.run_report.markup import as_html, as_xml, data_block, element


@given(st.text(), st.text())
def test_any_text_is_well_formed_xml_and_no_element_of_its_own(text, attribute):
    read = ElementTree.fromstring(as_xml(element("g", {"class": attribute}, text)))
    assert list(read) == []
    assert as_xml(element("g", None, "\x1b[31m\0")) == "<g>\\x1b[31m\\x00</g>\n"


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_data_cannot_end_its_script(value):
    class Reader(HTMLParser):
        found = ""
        ended = 0

        def handle_data(self, data):
            self.found += data

        def handle_endtag(self, _):
            self.ended += 1

    reader = Reader()
    reader.feed(as_html(data_block("data", value)).partition("\n")[2].rstrip("\n"))
    assert (json.loads(reader.found), reader.ended) == (value, 1)
